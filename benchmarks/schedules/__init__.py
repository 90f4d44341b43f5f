"""Random schedules of faults over a store and its drivers, one operation at a time, without processes."""
