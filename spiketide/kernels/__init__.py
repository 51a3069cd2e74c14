"""The operations that are not a scan over time, with their fast versions; ``nn.Module`` is not known here."""

from .projection import project as project
