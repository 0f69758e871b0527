"""Healthcare dialogue: preferences built, audited and trained on (Empathy by Design)."""
