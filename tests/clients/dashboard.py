"""Reads a Grafana dashboard with Grafana's own types, and prints what they do not know of it.

Usage: dashboard.py FILE. Each line of the output is the path of a member that the types drop or
change. Without output the file is a dashboard of this version of Grafana.
"""

import json
import sys

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard


def differences(before, after, path=""):
    if isinstance(before, dict):
        for name, value in before.items():
            if not isinstance(after, dict) or name not in after:
                yield f"{path}/{name}"
            else:
                yield from differences(value, after[name], f"{path}/{name}")
    elif isinstance(before, list):
        if not isinstance(after, list) or len(before) != len(after):
            yield path
            return
        for index, (one, other) in enumerate(zip(before, after)):
            yield from differences(one, other, f"{path}/{index}")
    elif before != after:
        yield path


with open(sys.argv[1], encoding="utf-8") as file:
    dashboard = json.load(file)
understood = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))
for path in differences(dashboard, understood):
    print(path)
