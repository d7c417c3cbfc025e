"""Bytes as people write them. Inside the program a size is always an `int` of bytes.

1 MB in this literature is 2**20 bytes (docs/adr/0001); the published budgets are rounded labels of exact byte
counts, and on the protocol they belong to the label means that count (docs/adr/0002).
"""

import re
from decimal import Decimal, InvalidOperation

MIB = 2**20
LARGEST_BYTES = 2**50  # a slip of the finger, not a budget

_UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}

# (data set, base classes, increment) → label in MB → bytes. MEMO (arXiv 2205.13218) Tables 2-12: a number of backbones
# plus 2000 images; tests/budgets/test_published_sizes.py rebuilds every count from the networks.
PUBLISHED_BYTES: dict[tuple[str, int, int], dict[str, int]] = {
    ("cifar100", 0, 10): {
        "7.6": 7_998_016,
        "12.4": 13_018_240,
        "16.0": 16_906_880,
        "19.8": 20_795_520,
        "23.5": 24_684_160,
    },
    ("imagenet100", 50, 5): {
        "329": 345_762_048,
        "493": 516_910_848,
        "755": 792_822_528,
        "872": 914_687_744,
        "1180": 1_237_581_568,
        "1273": 1_335_409_408,
    },
}


def parse_bytes(text: str) -> int:
    """Bytes of a size such as `7998016B`, `7,998,016 B`, `7.6MiB` (2**20) or `8MB` (10**6).

    Raises ValueError, one line that says what is allowed, for anything else: no unit, nothing, less than nothing, a
    fraction of a byte.
    """
    match = re.fullmatch(r"\s*([0-9]+|[0-9]{1,3}(?:,[0-9]{3})+|[0-9]*\.[0-9]+|[0-9]+\.[0-9]+)\s*([A-Za-z]+)\s*", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise ValueError(f"{text!r} is not a size: write a positive number and a unit, e.g. 7998016B, 7.6MiB or 8MB")
    number = Decimal(match[1].replace(",", ""))
    if number >= LARGEST_BYTES // unit:
        raise ValueError(f"{text[:40]!r} is not a size: it must be below {LARGEST_BYTES:,} B")
    size = number * unit
    if unit == 1 and size != size.to_integral_value():
        raise ValueError(f"{text!r} is not a size: there are no fractions of a byte")
    if size < 1:
        raise ValueError(f"{text!r} is not a size: it must be at least 1 B")
    return int(size)


def format_bytes(size_bytes: int) -> str:
    """Exact, for people: `7,998,016 B`; `parse_bytes` reads it back."""
    return f"{size_bytes:,} B"


def human_bytes(size_bytes: int) -> str:
    """Rounded, for people: `7.63 MiB`."""
    if size_bytes < 2**10:
        return f"{size_bytes} B"
    for unit, scale in (("KiB", 2**10), ("MiB", 2**20)):
        if size_bytes < 1000 * scale:
            return (
                f"{size_bytes / scale:.3g} {unit}" if size_bytes < 100 * scale else f"{size_bytes / scale:.0f} {unit}"
            )
    return f"{size_bytes / 2**30:.2f} GiB"


def parse_budget_mb(text: str, protocol: tuple[str, int, int] | None = None) -> tuple[int, str | None]:
    """Bytes of a `--budget-mb` value (1 MB = 2**20 B), and the published label it resolved to, if any.

    `protocol` is (data set, base classes, increment); where it has published budgets, their labels mean their bytes.
    Raises ValueError, one line, for anything that is not a positive number.
    """
    try:
        megabytes = Decimal(text.strip())
    except InvalidOperation:
        megabytes = Decimal("NaN")
    if not megabytes.is_finite() or megabytes <= 0:
        raise ValueError(f"{text!r} is not a budget: write a positive number of MB (2**20 B), e.g. 7.6 or 7.6,12.4")
    if megabytes >= LARGEST_BYTES // MIB:
        raise ValueError(f"{text[:40]!r} is not a budget: it must be below {LARGEST_BYTES // MIB:,} MB")
    for label, size_bytes in PUBLISHED_BYTES.get(protocol or ("", 0, 0), {}).items():
        if megabytes == Decimal(label):
            return size_bytes, label
    size_bytes = int(megabytes * MIB)
    if size_bytes < 1:
        raise ValueError(f"{text!r} is not a budget: it is less than one byte")
    return size_bytes, None
