"""Ways out, as evidence: pictures, detectors and rates."""
