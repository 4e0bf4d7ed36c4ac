"""Where the tokens of a mask are among the axes of a tensor."""

from __future__ import annotations

from torch import Tensor


def place_of(shape: tuple[int, ...], lead: tuple[int, ...]) -> str | None:
    """Return where the places of `shape` are among the axes `lead`, those of no features; None if nowhere.

    >>> [place_of((2, 5), lead) for lead in ((2, 5), (5, 2), (2, 4, 5), (10,), (8, 5), (2, 3))]
    ['front', 'turned', 'back', 'flat', 'heads', None]
    """
    if len(shape) == 1 or shape == lead:
        return "front" if shape == lead else None
    samples, tokens = shape
    fits = {
        "turned": lead == (tokens, samples),
        "back": len(lead) > 2 and (lead[0], lead[-1]) == shape,
        "front": lead[:2] == shape,
        "flat": lead in ((samples * tokens,), (1, samples * tokens)),
        "heads": len(lead) == 2 and lead[1] == tokens and lead[0] % samples == 0,
    }
    return next((place for place, fit in fits.items() if fit), None)


def spread(real: Tensor, lead: tuple[int, ...]) -> Tensor:
    """Return `real` for each of the places `lead`."""
    match place_of(tuple(real.shape), lead):
        case "turned":
            return real.T
        case "flat":
            return real.reshape(lead)
        case "heads":
            return real.repeat_interleave(lead[0] // len(real), 0)
        case "back":
            return real.view(len(real), *(1,) * (len(lead) - 2), -1).expand(lead)
        case _:
            return real.view(*real.shape, *(1,) * (len(lead) - real.ndim)).expand(lead)
