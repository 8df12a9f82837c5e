"""Decisions as pure functions of the gathered world; the clock is part of the world."""
