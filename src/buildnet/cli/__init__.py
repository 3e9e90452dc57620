"""The command line: one file for each noun, made of the SDK. It reaches into no room but the offline auditor."""
