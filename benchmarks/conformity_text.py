"""What docs/conformity.md says beside its figures."""

from __future__ import annotations

INTRODUCTION = """# Conformity

Which rules Flower and ByzFL have too, and whether they answer alike. This page is written by a command:

```sh
pip install --no-deps -r benchmarks/oracles.txt
python benchmarks/conformity.py --write docs/conformity.md
```

Seen with {versions}. "Flower" is the strategy of its message API, run on replies; "older API" are the functions below its
older strategies. ByzFL is called with numpy arrays and with torch tensors. Both sides are set alike, as the second column
says; f is the same.

"By hand" are eight points in the plane, one far away. Then {n} random federations a row: 5 to 20 clients, 2 to 200
coordinates, f from 0 to the largest legal one, in float64; in turn three clusters, heavy tails (Student's t with 1.5
degrees), and updates that lie on one line. "Other answer" is the share in which another client, or another value, came out:
a relative difference above 1e-9, or above 1e-5 where theirs is computed in float32; with Wilson's interval. "Largest" is
the largest relative difference, of all.
"""

HARD = """{n} federations each, 11 clients unless said otherwise, the largest legal f. A cell says how often the answer was
another one than ours, or what was raised instead. That ours is the paper's rule in these cases too is tested with rational
numbers in `tests/defenses/test_conformity.py`.

* **small**: 30 clients with float32 weights of about 0.02 and updates a millionth of them. The weights are aggregated, as Flower
  does. Another answer is one that is off by three tenths of an update.
* **copies**: two clients repeat a third, one a fourth. **ties**: values -1, 0 and 1 in two coordinates.
* **fewest**: the fewest clients that the rule is defined for, f = 0 to 3.
* **1e30**: one value of one client, float32. **float16**: values up to about 40; another answer is one that is off by 0.5 %.
* **zero**: one client did not move.
"""

WHY = (
    (
        "Krum and Multi-Krum, ByzFL.",
        "They take positions 1 to n - f - 1 of each row of sorted squared distances, of which position 0 is the client itself: one "
        "neighbour more than the paper's n - f - 2. (The mean in place of the sum changes nothing.) They accept every f < n / 2, "
        "the paper and ours 2f + 2 < n. With torch and more than 25 clients `torch.cdist` expands the square in float32, which is "
        "what **small** shows.",
    ),
    (
        "Krum and Multi-Krum, Flower.",
        "The paper's rule, on |x|^2 + |y|^2 - 2 x.y in the type of the arrays. On weights with small updates, and in float16, "
        "whose largest value is 65504, that leaves no digits. Ours shifts each block of columns first and takes close pairs from "
        "differences. **Ties** and **copies** as in the older API.",
    ),
    (
        "Krum and Multi-Krum, Flower's older API.",
        "The paper's rule, on differences, whose lengths are rounded to the type of the arrays and squared again. That breaks "
        "**ties** by rounding; ours counts scores within a relative 1e-12 as equal and takes the first client. In **float16** the "
        "lengths have three digits.",
    ),
    (
        "Multi-Krum, both Flower's.",
        "The chosen are weighted by their samples, as ours with `weighted: true`; in the paper, in ByzFL and by default here all "
        "count the same. Flower's default keeps one client, ByzFL and ours K - f.",
    ),
    (
        "Bulyan, Flower.",
        "The message API ranks the clients once and takes the best n - 2f, where the paper, the older API and ours choose one at "
        "a time and leave it out of the distances of the next.",
    ),
    (
        "Bulyan, ties.",
        "Of two values equally close to the median ours keeps the smaller one, theirs whichever `argpartition` puts first; and "
        "which client is chosen first as for Krum.",
    ),
    (
        "Geometric median, centered clipping, Clipping, fixed clipping: 1e30.",
        "Lengths are taken in float32, where 1e30 squared is infinite. The client's factor becomes 0 and it drops out, where the "
        "rule gives it its share of the way or clips it to the radius. Ours sums in float64. (**small**, geometric median: with "
        "numpy, too, theirs sums in float32.)",
    ),
    (
        "Fixed clipping, Flower.",
        "The radius is divided by the length without a check, so that one client that did not move ends the round with "
        "`ZeroDivisionError`. (The update by hand that is zero, **zero**, and some of the **ties**.)",
    ),
    (
        "Nearest-neighbour mixing, ByzFL.",
        (
            "The same rule. Of neighbours at equal distance ours takes the lower row number, theirs whichever `argpartition` or "
            "`topk` leaves in."
        ),
    ),
    (
        "Defaults that differ",
        "where the rule is the same. Geometric median: nu = 0.1 and plain in ByzFL, 1e-6 and by samples here, as in the paper. "
        "Centered clipping: a radius of 100 in ByzFL, the median distance here; ByzFL's cannot start elsewhere than at zero, "
        "because every `m` is refused. NNM: every f < n in ByzFL, 2f < n here. ByzFL's `Clipping` and `ARC` write into the array "
        "that they are given. ByzFL leaves out rows with infinity in its geometric median only; ours refuses NaN and infinity in "
        "every rule, and names the rows.",
    ),
)

#: What the rules that neither library has are tested against: tests/defenses/test_<file>.py.
OWN = {
    "alignins": "the definition written out in numpy, vectors by hand (`tests/defenses/test_align_ins.py`)",
    "anomaly": "the formulas in numpy, small updates to three digits (`tests/defenses/test_anomaly.py`)",
    "deepsight": "federations whose clusters and suspects are known (`tests/defenses/test_deepsight.py`)",
    "dnc": "the algorithm written out with numpy's SVD (`tests/defenses/test_dnc.py`)",
    "flame": "the steps after a known clustering in numpy (`tests/defenses/test_flame.py`)",
    "fltrust": "the definition in numpy, vectors by hand (`tests/defenses/test_fltrust.py`)",
    "foolsgold": "the algorithm in numpy over rounds, vectors by hand (`tests/defenses/test_foolsgold.py`)",
    "foundationfl": (
        "scipy's trimmed mean and numpy's median of the extended matrix, vectors by hand (`tests/defenses/test_foundationfl.py`)"
    ),
    "freqfed": "the sum of cosines of the definition, groups and vectors by hand (`tests/defenses/test_freqfed.py`)",
    "robust-lr": "the definition in numpy, vectors by hand (`tests/defenses/test_robust_lr.py`)",
    "signguard": "federations with known filters in numpy (`tests/defenses/test_signguard.py`)",
}

THEIRS_ALONE = (
    (
        "ByzFL: `MDA`, `MoNNA`, `Meamed`, `CAF`, `SMEA`, and the pre-aggregator `ARC`. `Meamed` is the second step of Bulyan over "
        "all clients."
    ),
    "Flower: clipping with an adaptive radius, and clipping by the clients themselves.",
)
