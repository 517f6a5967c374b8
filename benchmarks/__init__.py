"""What hardening costs, as ratios against bare runs and peers that are measured in the same rounds."""
