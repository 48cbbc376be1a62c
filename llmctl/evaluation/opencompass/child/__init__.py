"""What runs inside OpenCompass' own environment: our model, our inferencers and the run itself.

The folder is copied into the folder of a run as the package `llmctl_oc`, so nothing in it may
import the rest of llmctl, and a run can be looked at, and run again, as it was.
"""
