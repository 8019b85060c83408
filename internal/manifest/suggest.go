package manifest

import "strings"

// didYouMean is " (did you mean X?)" for the nearest candidate, or empty if none is
// near: the same letters in another case, or at most a third of them changed.
func didYouMean(written string, candidates []string) string {
	best, bestDistance := "", len(written)/3+1
	for _, c := range candidates {
		d := distance(strings.ToLower(written), strings.ToLower(c))
		if d < bestDistance || d == bestDistance && best == "" {
			best, bestDistance = c, d
		}
	}
	if best == "" || len(written) > 64 {
		return ""
	}
	return " (did you mean " + best + "?)"
}

// distance is the Damerau-Levenshtein distance in its restricted form: insertions,
// deletions, substitutions and swaps of neighbours.
func distance(a, b string) int {
	const far = 1 << 10
	if len(a) > 64 || len(b) > 64 {
		return far
	}
	before, prev := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, prev = prev, row
	}
	return prev[len(b)]
}
