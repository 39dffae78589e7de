"""CT series in; structure sets (RTSTRUCT) and segmentations in and out. Geometry is by matrix: positions are in DICOM's patient
coordinates (mm; x to the patient's left, y to the back, z to the head), which are also those of SimpleITK."""
