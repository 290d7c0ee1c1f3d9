"""Numbers as people read them."""


def ms(value: float) -> str:
    """Milliseconds: four digits below a thousand, whole numbers above."""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
