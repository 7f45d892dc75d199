"""What becomes of runs: started again by the system or by hand, ended, put first; and where they wait."""
