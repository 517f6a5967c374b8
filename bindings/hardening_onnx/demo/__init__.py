"""The parts of `hardening demo`: real files, a real model, measurements, and their presentation."""
