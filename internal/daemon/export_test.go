package daemon

import "io"

// MainWith opens Main's streams to tests.
func MainWith[T any, P Config[T]](args []string, p Program[T], stdout, stderr io.Writer) int {
	return mainWith[T, P](args, p, stdout, stderr)
}
