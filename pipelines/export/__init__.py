"""Task models as other libraries load them, transformers and peft: their classes, their files. Knows no study and no card."""
