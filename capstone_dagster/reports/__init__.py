"""How good the service is, from the pipeline's own records.

`records` are the values, `reading` fetches them from both databases, the modules named for a report are pure
arithmetic over them, and `shown` renders every report as text, Markdown or JSON. docs/reports.md defines each
figure.
"""
