"""Reads YAML documents from standard input and prints them as one JSON array."""

import json
import sys

import yaml

json.dump([part for part in yaml.safe_load_all(sys.stdin) if part is not None], sys.stdout)
