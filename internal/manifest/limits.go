package manifest

// Limits bounds what Parse accepts from one source.
type Limits struct {
	// Bytes is the size of the source.
	Bytes int64
	// Documents is the number of YAML documents or JSON values.
	Documents int
	// Depth is how deep values may nest; an object's own fields are at depth 1.
	Depth int
	// Values is the number of values, with every YAML alias counted at each
	// place where it is used.
	Values int
	// Aliased is the number of values that aliases may stand for, in all.
	Aliased int
	// Problems is how many mistakes are listed; the rest are counted.
	Problems int
}

// DefaultLimits is 8 MiB, 50,000 documents, 64 levels, 1,000,000 values, 100,000
// aliased values and 100 problems.
func DefaultLimits() Limits {
	return Limits{
		Bytes: 8 << 20, Documents: 50_000, Depth: 64, Values: 1_000_000, Aliased: 100_000, Problems: 100,
	}
}
