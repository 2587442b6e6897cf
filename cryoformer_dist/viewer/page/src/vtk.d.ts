// Of this filter the package declares no types.
declare module "@kitware/vtk.js/Filters/General/ImageMarchingCubes" {
  import type vtkPolyData from "@kitware/vtk.js/Common/DataModel/PolyData";
  interface MarchingCubes {
    setContourValue(value: number): void;
    setInputData(image: object): void;
    update(): void;
    getOutputData(): vtkPolyData;
  }
  const filter: { newInstance(settings: { computeNormals: boolean; mergePoints: boolean }): MarchingCubes };
  export default filter;
}
