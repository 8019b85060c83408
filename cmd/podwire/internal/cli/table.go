package cli

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"

	"podwire.dev/internal/manifest"
)

// layout says how a table looks.
type layout struct {
	// header prints the titles first.
	header bool
	wide   bool
	// namespaces adds the column NAMESPACE.
	namespaces bool
	// kinds writes names as kind/name, as kubectl does where several kinds are shown.
	kinds bool
}

// table prints objects of one kind. Widths grow and never shrink, so that the lines of a watch stay below each other.
type table struct {
	kind   manifest.Kind
	layout layout
	widths []int
}

// gap is the number of spaces between two columns.
const gap = 3

func (t *table) write(w io.Writer, list []manifest.Message, now time.Time) error {
	return t.writeMarked(w, list, now, "")
}

// writeMarked ends each line with a mark.
func (t *table) writeMarked(w io.Writer, list []manifest.Message, now time.Time, mark string) error {
	shown := slices.DeleteFunc(columns(t.kind.Name), func(c column) bool { return c.wide && !t.layout.wide })
	var lines [][]string
	if t.layout.header {
		titles := make([]string, 0, len(shown)+1)
		if t.layout.namespaces {
			titles = append(titles, "NAMESPACE")
		}
		for _, c := range shown {
			titles = append(titles, c.title)
		}
		lines = append(lines, titles)
		t.layout.header = false
	}
	for _, m := range list {
		lines = append(lines, t.cells(shown, m, now, mark))
	}
	for _, cells := range lines {
		for i, cell := range cells {
			if i == len(t.widths) {
				t.widths = append(t.widths, 0)
			}
			t.widths[i] = max(t.widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, cells := range lines {
		for i, cell := range cells {
			b.WriteString(cell)
			if i < len(cells)-1 {
				b.WriteString(strings.Repeat(" ", t.widths[i]-utf8.RuneCountInString(cell)+gap))
			}
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (t *table) cells(shown []column, m manifest.Message, now time.Time, mark string) []string {
	cells := make([]string, 0, len(shown)+2)
	if t.layout.namespaces {
		cells = append(cells, m.GetMetadata().GetNamespace())
	}
	for i, c := range shown {
		text := c.cell(m, now)
		if i == 0 && t.layout.kinds {
			text = label(t.kind, text)
		}
		cells = append(cells, text)
	}
	if mark != "" {
		cells = append(cells, mark)
	}
	return cells
}

// ageOf is the time since t as kubectl prints it.
func ageOf(t *timestamppb.Timestamp, now time.Time) string {
	if t == nil {
		return "<unknown>"
	}
	return age(now.Sub(t.AsTime()))
}

const (
	day  = 24 * time.Hour
	year = 365 * day
)

// age is a duration in its one or two largest units, with kubectl's bounds (apimachinery, HumanDuration).
func age(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < 2*time.Minute:
		return units(d, time.Second, "s", 0, "")
	case d < 10*time.Minute:
		return units(d, time.Minute, "m", time.Second, "s")
	case d < 3*time.Hour:
		return units(d, time.Minute, "m", 0, "")
	case d < 8*time.Hour:
		return units(d, time.Hour, "h", time.Minute, "m")
	case d < 2*day:
		return units(d, time.Hour, "h", 0, "")
	case d < 8*day:
		return units(d, day, "d", time.Hour, "h")
	case d < 2*year:
		return units(d, day, "d", 0, "")
	case d < 8*year:
		return units(d, year, "y", day, "d")
	}
	return units(d, year, "y", 0, "")
}

func units(d, large time.Duration, largeName string, small time.Duration, smallName string) string {
	text := strconv.FormatInt(int64(d/large), 10) + largeName
	if small == 0 || d%large/small == 0 {
		return text
	}
	return text + strconv.FormatInt(int64(d%large/small), 10) + smallName
}

// label names an object as kubectl does: service/web, networkpolicy.networking.k8s.io/web.
func label(k manifest.Kind, name string) string {
	if k.Group != "" {
		return fmt.Sprintf("%s.%s/%s", k.Singular, k.Group, name)
	}
	return k.Singular + "/" + name
}
