"""The farm's rules, pure: records, state tables, events in and commands out. It opens nothing."""
