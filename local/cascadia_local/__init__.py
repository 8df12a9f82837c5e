"""The embedded runtime: engines and routers of a cascade as processes on one machine."""
