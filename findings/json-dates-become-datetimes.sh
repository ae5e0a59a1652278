#!/usr/bin/env bash
# datasets 5.2.0 with pyarrow 26.0.1: text answers of a JSON Lines file are no longer text if all of them look like ISO dates.
#
# JSON says that "1969-07-20" is a string. load_dataset("json") hands the file to pyarrow's JSON reader, which guesses timestamps in
# strings, so a question-answering file whose answers are all dates is read as datetime objects: "1969-07-20" comes back as
# 1969-07-20 00:00:00, and a model that is trained on str(answer), or scored against it, learns another text. One answer of another
# form anywhere in the file turns all of them into text again, so a subset (a client's share, a filtered copy, a test split of
# "when" questions) has other answers than the file it was cut from. Declaring the column as a string does not help: the guess comes
# first, and what is cast back is "1969-07-20 00:00:00".
#
# Seen with datasets 5.2.0, pyarrow 26.0.1:
#   all dates        timestamp[s]  1969-07-20 00:00:00 | 1991-12-26 00:00:00
#   dates and times  timestamp[s]  1969-07-20 20:17:00 | 1991-12-26 00:00:00
#   one other text   string        1969-07-20 | a Sunday in July
#   all dates, declared string  string  1969-07-20 00:00:00 | 1991-12-26 00:00:00
# Exit code 0: as seen. 1: the libraries behave otherwise now.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q datasets==5.2.0 pyarrow==26.0.1
HF_DATASETS_CACHE="$folder/cache" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder" <<'PYTHON'
import json
import sys
from pathlib import Path

import datasets
import pyarrow

datasets.disable_progress_bars()
folder = Path(sys.argv[1])


def read(name: str, answers: list[str], features: datasets.Features | None = None) -> tuple[str, list[str]]:
    path = folder / f"{name.replace(' ', '-')}.jsonl"
    path.write_text("".join(json.dumps({"question": "When?", "answer": answer}) + "\n" for answer in answers))
    rows = datasets.load_dataset("json", data_files=str(path), split="train", features=features)
    return rows.features["answer"].dtype, [str(answer) for answer in rows["answer"]]


text = datasets.Features({"question": datasets.Value("string"), "answer": datasets.Value("string")})
dates = ["1969-07-20", "1991-12-26"]
found = {
    "all dates": read("all dates", dates),
    "dates and times": read("dates and times", ["1969-07-20T20:17:00", dates[1]]),
    "one other text": read("one other text", [dates[0], "a Sunday in July"]),
    "all dates, declared string": read("named", dates, text),
}
print("datasets", datasets.__version__, "pyarrow", pyarrow.__version__)
for name, (kind, answers) in found.items():
    print(f"{name:27} {kind:13} {' | '.join(answers)}")
expected = {
    "all dates": ("timestamp[s]", ["1969-07-20 00:00:00", "1991-12-26 00:00:00"]),
    "dates and times": ("timestamp[s]", ["1969-07-20 20:17:00", "1991-12-26 00:00:00"]),
    "one other text": ("string", [dates[0], "a Sunday in July"]),
    "all dates, declared string": ("string", ["1969-07-20 00:00:00", "1991-12-26 00:00:00"]),
}
sys.exit(found != expected)
PYTHON
