"""The data engine: problems and rollouts come in, are cleaned, judged and counted; torch is never needed here."""
