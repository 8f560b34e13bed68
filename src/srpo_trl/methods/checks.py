"""What the options of methods may be; a factory asks first."""


def above_0(**options: float) -> None:
    """Raise ValueError where one is not above 0."""
    for name, value in options.items():
        if not value > 0:
            raise ValueError(f"{name} is {value!r}; it must be above 0")


def within_1(**options: float) -> None:
    """Raise ValueError where one is not from 0 to 1."""
    for name, value in options.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value!r}; it must be from 0 to 1")
