// One map as an isosurface, turned by the mouse.
// Each makes itself known to vtk.js; a whole profile would be twice as large.
import "@kitware/vtk.js/Rendering/OpenGL/Actor";
import "@kitware/vtk.js/Rendering/OpenGL/Camera";
import "@kitware/vtk.js/Rendering/OpenGL/PolyDataMapper";
import "@kitware/vtk.js/Rendering/OpenGL/Renderer";
import "@kitware/vtk.js/Rendering/OpenGL/RenderWindow";
import vtkDataArray from "@kitware/vtk.js/Common/Core/DataArray";
import vtkImageData from "@kitware/vtk.js/Common/DataModel/ImageData";
import vtkImageMarchingCubes from "@kitware/vtk.js/Filters/General/ImageMarchingCubes";
import vtkInteractorStyleTrackballCamera from "@kitware/vtk.js/Interaction/Style/InteractorStyleTrackballCamera";
import vtkActor from "@kitware/vtk.js/Rendering/Core/Actor";
import vtkMapper from "@kitware/vtk.js/Rendering/Core/Mapper";
import vtkRenderer from "@kitware/vtk.js/Rendering/Core/Renderer";
import vtkRenderWindow from "@kitware/vtk.js/Rendering/Core/RenderWindow";
import vtkRenderWindowInteractor from "@kitware/vtk.js/Rendering/Core/RenderWindowInteractor";
import { flexibilityColour } from "./palettes";
import type { DensityMap } from "./server";

const PLAIN = [0.42, 0.6, 0.82];

export interface Surface {
  show(map: DensityMap): void;
  setLevel(level: number): void;
  setColoured(coloured: boolean): void;
  reset(): void;
  triangles(): number;
}

export function makeSurface(container: HTMLElement): Surface {
  const renderer = vtkRenderer.newInstance({ background: [1, 1, 1] });
  const renderWindow = vtkRenderWindow.newInstance();
  renderWindow.addRenderer(renderer);
  const view = renderWindow.newAPISpecificView("WebGL")!;
  view.setContainer(container);
  renderWindow.addView(view);
  const interactor = vtkRenderWindowInteractor.newInstance();
  interactor.setInteractorStyle(vtkInteractorStyleTrackballCamera.newInstance());
  interactor.setView(view);
  interactor.initialize();
  interactor.bindEvents(container);

  const cubes = vtkImageMarchingCubes.newInstance({ computeNormals: true, mergePoints: true });
  const mapper = vtkMapper.newInstance({ scalarVisibility: false });
  const actor = vtkActor.newInstance();
  actor.setMapper(mapper);
  actor.getProperty().setColor(PLAIN[0], PLAIN[1], PLAIN[2]);
  actor.getProperty().setAmbient(0.15);
  actor.getProperty().setDiffuse(0.85);
  actor.getProperty().setSpecular(0.15);
  actor.getProperty().setSpecularPower(20);
  let shown: DensityMap | null = null;
  let level = 0;
  let coloured = true;

  function resize(): void {
    const { width, height } = container.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    if (width && height) view.setSize(Math.floor(width * ratio), Math.floor(height * ratio));
    renderWindow.render();
  }
  new ResizeObserver(resize).observe(container);

  function draw(): void {
    if (!shown) return;
    cubes.setContourValue(level);
    cubes.update();
    const surface = cubes.getOutputData();
    const paint = coloured && shown.flexibility !== null;
    mapper.setScalarVisibility(paint);
    if (paint) surface.getPointData().setScalars(colourVertices(surface.getPoints().getData() as Float32Array, shown));
    mapper.setInputData(surface);
    renderer.addActor(actor);
    renderWindow.render();
  }

  return {
    show(map) {
      const first = shown === null || shown.box !== map.box;
      shown = map;
      const image = vtkImageData.newInstance();
      const corner = (-map.box / 2) * map.voxelSizeAngstrom;
      image.setDimensions(map.box, map.box, map.box);
      image.setSpacing([map.voxelSizeAngstrom, map.voxelSizeAngstrom, map.voxelSizeAngstrom]);
      image.setOrigin([corner, corner, corner]);
      image.getPointData().setScalars(vtkDataArray.newInstance({ name: "density", values: map.voxels }));
      cubes.setInputData(image);
      draw();
      if (first) this.reset();
    },
    setLevel(next) {
      level = next;
      draw();
    },
    setColoured(next) {
      coloured = next;
      draw();
    },
    reset() {
      renderer.getActiveCamera().setViewUp(0, 1, 0);
      renderer.getActiveCamera().setPosition(0, 0, 1);
      renderer.getActiveCamera().setFocalPoint(0, 0, 0);
      renderer.resetCamera();
      renderer.getActiveCamera().zoom(1.12);
      renderer.resetCameraClippingRange();
      renderWindow.render();
    },
    triangles: () => (shown ? cubes.getOutputData().getPolys().getNumberOfCells() : 0),
  };
}

/** How much density varies at the voxel nearest to each vertex. */
function colourVertices(points: Float32Array, map: DensityMap): vtkDataArray {
  const colours = new Uint8Array(points.length);
  const place = (at: number) =>
    Math.min(map.box - 1, Math.max(0, Math.round(at / map.voxelSizeAngstrom + map.box / 2)));
  for (let i = 0; i < points.length; i += 3) {
    const voxel = (place(points[i + 2]) * map.box + place(points[i + 1])) * map.box + place(points[i]);
    colours.set(flexibilityColour(map.flexibility![voxel]), i);
  }
  return vtkDataArray.newInstance({ name: "flexibility", numberOfComponents: 3, values: colours });
}
