"""The checks that every request passes before its body is read: identity, origin, rate, body limits, admission.

A module here may reject a request or bound what it costs. Field validation belongs to the dialects.
"""
