"""A checker for `penumbra label check`: is the last number of the answer the problem's?"""

import json
import re
import sys

for line in sys.stdin:
    asked = json.loads(line)
    numbers = re.findall(r"-?\d+(?:\.\d+)?", asked["answer"].replace(",", ""))
    right = bool(numbers) and float(numbers[-1]) == float(asked["record"]["answer"])
    whole = asked["finish_reason"] == "stop"
    asked_about = {"id": asked["id"], "sample": asked["sample"]}
    print(json.dumps({**asked_about, "keep": right, "score": 1.0 if whole else 0.5}), flush=True)
