#!/usr/bin/env bash
# rouge-score 0.1.2 (through absl-py 2.5.1) and anything that calls logging.config.dictConfig, under pytest 9.2.0: the captured stderr of
# the whole session is closed, and every test after that fails, whatever it tests.
#
# rouge-score imports absl.logging, whose handler keeps the sys.stderr of that moment: under pytest the session's capture. dictConfig
# shuts existing handlers down; absl's closes its stream unless that is sys.stderr at this moment, and in a test with `capsys` it is
# not. Which tests fail depends on their order and on the worker, so it looks like a random failure. Import-linter's Python function
# calls dictConfig; in a process of its own it does no harm.
#
# Seen: "ValueError: I/O operation on closed file" (pytest itself ends with "lost sys.stderr"); each of the two files alone passes.
# Exit code 0: as seen. 1: it is otherwise now.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q rouge-score==0.1.2 absl-py==2.5.1 pytest==9.2.0
cat > "$folder/test_a_metric.py" <<'PYTHON'
def test_metric():
    from rouge_score import rouge_scorer

    found = rouge_scorer.RougeScorer(["rougeL"]).score("a town by the sea", "a town by the sea")
    assert found["rougeL"].recall == 1.0
PYTHON
cat > "$folder/test_b_logging.py" <<'PYTHON'
import logging.config


def test_logging(capsys):
    logging.config.dictConfig({"version": 1})


def test_nothing():
    pass
PYTHON
cd "$folder"
alone_a=$(venv/bin/python -m pytest -q -p no:cacheprovider test_a_metric.py 2>&1 | tail -n 1)
alone_b=$(venv/bin/python -m pytest -q -p no:cacheprovider test_b_logging.py 2>&1 | tail -n 1)
both=$(venv/bin/python -m pytest -q -p no:cacheprovider test_a_metric.py test_b_logging.py 2>&1 || true)
echo "metric alone:  $alone_a"
echo "logging alone: $alone_b"
echo "both:          $(grep -m 1 "I/O operation" <<<"$both" || tail -n 1 <<<"$both")"
grep -q "1 passed" <<<"$alone_a" && grep -q "2 passed" <<<"$alone_b" && grep -q "I/O operation on closed file" <<<"$both"
