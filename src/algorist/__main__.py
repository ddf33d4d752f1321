"""`python -m algorist` is the command `algorist`."""

from algorist.cli import main

main()
