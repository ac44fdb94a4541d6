"""Shared utilities of Paperlab, one package a domain."""
