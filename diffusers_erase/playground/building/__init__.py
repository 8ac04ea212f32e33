"""Builds the playground's weights from nothing; part of the repository, not of the wheel."""
