"""The (ε, δ) of rounds of Gaussian noise, by Google's dp-accounting."""

from __future__ import annotations

import math

from undertow.core.errors import UserError

PIP = "pip install -e '.[privacy]' in the clone"


def check_accountant() -> None:
    """Refuse to go on without the accountant.

    Raises:
        UserError: dp-accounting is not installed, with the line that installs it.
    """
    try:
        import dp_accounting  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: F401
    except ImportError as error:
        raise UserError(f"the (eps, delta) account of weak-dp needs dp-accounting; {PIP}, or set sigma = 0") from error


def gaussian_epsilon(precision: float, delta: float) -> float:
    """Return ε of Gaussian mechanisms with noise multipliers z_t, for Σ 1 / z_t² = ``precision``, at ``delta``.

    Adaptively composed Gaussian mechanisms are together one of multiplier 1 / sqrt(Σ 1 / z_t²) (Dong, Roth, Su 2022, Gaussian
    Differential Privacy, Corollary 3.3), whose ε is exact (Balle and Wang 2018, Theorem 8).

    Raises:
        UserError: as :func:`check_accountant`.
    """
    check_accountant()
    from dp_accounting import get_epsilon_gaussian

    return float(get_epsilon_gaussian(1 / math.sqrt(precision), delta)) if precision > 0 else 0.0
