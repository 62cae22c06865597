"""Metrics, recorded steps and requests to an OpenTelemetry collector, by OTLP over HTTP."""
