"""Numbers as people read them."""


def ms(value: float) -> str:
    """Milliseconds: four digits below a thousand, whole numbers above."""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def in_points(value: float) -> str:
    """Percentage points: `1 point`, `2.5 points`."""
    return f"{value:g} point{'' if value == 1 else 's'}"
