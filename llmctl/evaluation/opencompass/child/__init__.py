"""Code that runs in OpenCompass' virtual environment: models, inferencers and the driver.

The folder is copied into the results folder of a run as the package `llmctl_oc`, so it must not
import other modules of llmctl, and a run can be inspected and repeated as it was.
"""
