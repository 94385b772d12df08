"""Which section of ``docs/operating.md`` says what to do? By the stage that failed."""

RUNBOOK = "docs/operating.md"
# stage: heading of the section on its failures, where bad data is the usual cause
SECTIONS = {
    "land": "landing-failed",
    "validate_landed": "the-landed-log-is-invalid",
    "transform": "the-transform-failed",
    "validate_transitions": "the-transitions-are-invalid",
    "features": "features-were-not-brought-up-to-date",
    "parity": "features-were-not-brought-up-to-date",
    "validate_training_set": "the-training-set-is-invalid",
    "train": "training-failed",
    "evaluate": "training-failed",
    "gate": "gate-or-promotion-failed",
    "promote": "gate-or-promotion-failed",
}
