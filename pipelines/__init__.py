"""The stages of the study, each one frozen config and one function from input paths to an output folder."""
