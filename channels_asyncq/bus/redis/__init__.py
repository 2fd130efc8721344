"""The bus over Redis or Valkey: sends, subscriptions, logs, normal channels, leases."""
