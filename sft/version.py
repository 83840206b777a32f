"""The version of sft, recorded in everything that it writes."""

VERSION = "0.1.0"
