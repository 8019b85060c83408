package runtime

import (
	"testing"

	"podwire.dev/services/nodeagent/internal/runtime/podspec"
)

func withImage(p podspec.Pod, image string) podspec.Pod {
	p.Containers = []podspec.Container{p.Containers[0]}
	p.Containers[0].Image = image
	return p
}

func TestReplaceStartsAContainerAgainWithItsNewImage(t *testing.T) {
	root := t.TempDir()
	n := newNode(t, root, nil)
	p := withImage(echoPod("img"), "example.com/nothing")
	p.RestartPolicy = podspec.RestartNever
	n.start(p)
	n.until("img-uid", "waiting for an image", func(s PodState) bool { return s.Containers[0].Reason == reasonImage })

	replace := func(image string) {
		t.Helper()
		if err := n.Replace(t.Context(), withImage(p, image)); err != nil {
			t.Fatal(err)
		}
	}
	replace(EchoImage)
	s := n.until("img-uid", "running", running)
	if s.Containers[0].RestartCount != 0 || s.Containers[0].Image != EchoImage {
		t.Errorf("%+v", s.Containers[0])
	}
	replace(EchoImage) // the same again is nothing
	replace(EchoImage + ":2")
	s = n.until("img-uid", "running again", func(s PodState) bool { return running(s) && s.Containers[0].Image == EchoImage+":2" })
	if c := s.Containers[0]; c.RestartCount != 1 || c.Previous == nil {
		t.Errorf("%+v", c)
	}

	// A restarted agent knows the image, and does not start anything again.
	n.end()
	n = newNode(t, root, nil)
	s = n.until("img-uid", "adopted", running)
	if c := s.Containers[0]; c.Image != EchoImage+":2" || c.RestartCount != 1 {
		t.Errorf("%+v", c)
	}
}

func TestReplaceEndsABackOff(t *testing.T) {
	n := newNode(t, t.TempDir(), nil)
	p := shellPod("loop", "exit 3")
	n.start(p)
	n.until("loop-uid", "in back-off", func(s PodState) bool { return s.Containers[0].Message != "" })
	if err := n.Replace(t.Context(), withImage(p, EchoImage)); err != nil {
		t.Fatal(err)
	}
	s := n.until("loop-uid", "running", running)
	if c := s.Containers[0]; c.RestartCount != 2 || c.Previous == nil || c.Previous.Code != 3 {
		t.Errorf("%+v", c)
	}
}
