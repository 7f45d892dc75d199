"""The list, rendered as CloudFormation.

`deployment` names what only a deployment knows, `alarms` and `dashboards` give an entry its properties,
`template` writes YAML, and `cloudformation` assembles the two templates.
"""
