package lab

import (
	"os"
	"strconv"
	"strings"

	"podwire.dev/internal/errs"
)

// Mount is one line of a mountinfo (proc_pid_mountinfo(5)).
type Mount struct {
	// Target is the mount point, Root what of its file system is seen there ("net:[4026532281]" for a namespace).
	Target, Root string
	Type         string
}

// ReadMounts reads a mountinfo file, in the order of the mounts.
func ReadMounts(path string) ([]Mount, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "mounts")
	}
	return ParseMounts(string(text)), nil
}

// ParseMounts parses the text of a mountinfo; lines of another shape are left out.
func ParseMounts(text string) []Mount {
	var out []Mount
	for line := range strings.Lines(text) {
		// id parent major:minor root target options [tag…] - type source options
		before, after, found := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		fields, rest := strings.Split(before, " "), strings.Split(after, " ")
		if !found || len(fields) < 6 {
			continue
		}
		out = append(out, Mount{Target: unescape(fields[4]), Root: unescape(fields[3]), Type: rest[0]})
	}
	return out
}

// unescape undoes the kernel's \ooo for blanks and backslashes.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// Beneath says whether a mount point lies in dir. The directory itself may be somebody's mount.
func (m Mount) Beneath(dir string) bool { return strings.HasPrefix(m.Target, dir+"/") }

// namespaceInode is the inode in a root such as net:[4026532281].
func (m Mount) namespaceInode(kind string) (uint64, bool) {
	text, ok := strings.CutPrefix(m.Root, kind+":[")
	if !ok || m.Type != "nsfs" {
		return 0, false
	}
	ino, err := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 64)
	return ino, err == nil
}
