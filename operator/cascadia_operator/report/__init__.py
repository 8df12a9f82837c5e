"""What the operator tells: status, conditions and Events, as pure functions of what was found and done."""
