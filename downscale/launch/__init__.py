"""What runs need, told before they run: plans of whole studies, compiled without their hardware."""
