"""The farm's mind, pure: records, state tables, events in and commands out. It opens nothing."""
