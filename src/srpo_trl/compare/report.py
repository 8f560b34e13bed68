"""What is printed and written (to come)."""


def report(plan, missing, console) -> None:
    """Say what is missing."""
    console.print(missing)
