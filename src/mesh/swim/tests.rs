//! Tests of the machine by itself.
