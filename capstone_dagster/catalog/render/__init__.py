"""The list, turned into what others read: CloudFormation templates, boto3's calls, pages.

`requests` says in the words of AWS's APIs what the list asks for, with the deployment's own names left open;
`cloudformation` and `boto` fill these in, each in its way, so that both ask for the same.
"""
