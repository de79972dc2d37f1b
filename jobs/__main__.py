"""`python -m jobs ...` is the same as `perceive ...`; Ray jobs start here."""

from jobs.cli import main

if __name__ == "__main__":
    main()
